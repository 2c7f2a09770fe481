"""What must be survived (docs/reliability.md): the instruments, and a test for each fault."""
