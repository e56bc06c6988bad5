"""The device at the branch: how a bundle for it is laid out, and how it runs one."""
