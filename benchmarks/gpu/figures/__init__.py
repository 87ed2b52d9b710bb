"""What is measured, for the programs beside this folder."""
