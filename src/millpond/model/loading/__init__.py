"""A transformer's weights, from its files to a device."""
