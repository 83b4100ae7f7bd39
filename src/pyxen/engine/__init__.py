"""How xend drives a running domain: one contract, one implementation for each kind of monitor."""
