"""From folders, list files and cards to training batches: `load_domains`, transforms and loaders."""
