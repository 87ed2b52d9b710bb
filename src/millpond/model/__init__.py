"""One model on one device: load, choose a dtype, verify, run packed or padded."""
