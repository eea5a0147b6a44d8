"""Adaptation of a model from labelled source images to unlabelled target images."""
