"""Basics that every room uses: errors, registry, settings, files, processes."""
