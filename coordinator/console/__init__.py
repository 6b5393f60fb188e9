"""Server-rendered pages for people: sign in, passkeys, and the review of releases. What they do goes to /v1/ alone."""
