"""xen_version: xen/include/public/version.h."""

from __future__ import annotations

from typing import Final, NamedTuple

from pyxen.abi.layout import U32, Layout

VERSION: Final = 0
EXTRAVERSION: Final = 1
COMPILE_INFO: Final = 2
CAPABILITIES: Final = 3
CHANGESET: Final = 4
PLATFORM_PARAMETERS: Final = 5
GET_FEATURES: Final = 6
PAGESIZE: Final = 7
GUEST_HANDLE: Final = 8
COMMANDLINE: Final = 9
BUILD_ID: Final = 10

EXTRAVERSION_SIZE: Final = 16
COMPILE_INFO_SIZES: Final = (64, 16, 32, 32)
"""Of compiler, compile_by, compile_domain and compile_date."""
CAPABILITIES_SIZE: Final = 1024
CHANGESET_SIZE: Final = 64
COMMANDLINE_SIZE: Final = 1024


class FeatureInfo(NamedTuple):
    submap_idx: U32
    submap: U32


class BuildId(NamedTuple):
    length: U32


FEATURE_INFO: Final = Layout(FeatureInfo)
BUILD_ID_ARG: Final = Layout(BuildId)
