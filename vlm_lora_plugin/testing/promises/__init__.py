"""The checks, a file for each kind of promise; each takes the family under test and raises where it fails."""
