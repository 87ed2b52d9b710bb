"""What follows the encoder of a route: a checkpoint's own heads, on hidden states of any origin."""
