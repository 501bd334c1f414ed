"""What each training framework needs so that all of them train the same."""
