"""Errors of the package that makes machines' images.

ImagesError                 base: catch this one to catch them all
├── PackagesMissing         a tree of Debian packages can't be had; says why
├── RecipeError             a recipe file is wrong: its writer's
└── ImageMissing            an image is not there and was not asked for, or can't be made; says why and what to do
"""

from __future__ import annotations


class ImagesError(Exception):
    """Base of everything that this package raises on purpose."""


class PackagesMissing(ImagesError):
    """A tree of Debian packages is not there and can't be made."""


class RecipeError(ImagesError):
    """A recipe can't be followed as it is written."""


class ImageMissing(ImagesError):
    """An image is not there and can't be made."""
