"""What every room uses: errors, registry, settings, files, processes."""
