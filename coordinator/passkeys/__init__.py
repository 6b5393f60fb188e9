"""People's passkeys: registered in a fresh session, fixed in plans, and counted whenever one signs."""
