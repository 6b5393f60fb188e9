"""What a site reports of incidents, and what its own copy of the log says is open."""
