"""Sites: invitation, enrolment, certificate renewal, revocation, and what each has on record."""
