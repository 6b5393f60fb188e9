"""The round driver: key set-up, secure rounds with retries on a smaller cohort, evaluation, the candidate."""
