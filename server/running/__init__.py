"""Running a federation: the server kept up, runs submitted, watched, stopped and gone on with."""
