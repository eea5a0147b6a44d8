"""The study of visual hardness: scores of images by any classifier, compared with the choices of people.

Source: Angular Visual Hardness (Chen et al., ICML 2020), its discoveries and its discussion.
"""
