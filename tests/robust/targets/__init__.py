"""What is read: each module here lists targets of `tests.robust.fuzz` as TARGETS."""
