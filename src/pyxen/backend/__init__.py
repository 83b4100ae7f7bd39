"""Back ends: Domain-0's halves of a domain's console, disks and network interfaces."""
