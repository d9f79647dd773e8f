"""Sources, transforms and the loader; numpy only."""
