"""The console's page: what the guest reads, what it prints, and four free-running indices.

From xen/include/public/io/console.h.
"""

from __future__ import annotations

IN_SIZE = 1024
OUT_SIZE = 2048
IN = 0
OUT = 1024
IN_CONS = 3072
IN_PROD = 3076
OUT_CONS = 3080
OUT_PROD = 3084
