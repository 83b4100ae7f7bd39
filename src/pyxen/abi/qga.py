"""The protocol of QEMU's guest agent: JSON, one object a line.

Source: QEMU's qga/qapi-schema.json and docs/interop/qemu-ga.rst.

A request is ``{"execute": NAME, "arguments": {…}, "id": ANYTHING}``, its answer ``{"return": …, "id": …}`` or
``{"error": {"class": …, "desc": …}, "id": …}``. There is no greeting: after ``guest-sync-delimited`` both sides know
where a line begins.
"""

from __future__ import annotations

from typing import Final

PORT_NAME: Final = "org.qemu.guest_agent.0"
"""Of the virtio-serial port."""
DELIMITER: Final = b"\xff"
"""Is in no JSON. Sent to the agent it ends whatever it has a part of; the agent sends it before it answers
guest-sync-delimited."""
MOST_OUTPUT: Final = 16 << 20
"""Bytes of each of a command's outputs that the agent keeps (GUEST_EXEC_MAX_OUTPUT, qga/commands.c)."""
