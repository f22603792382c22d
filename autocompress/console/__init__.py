"""What command lines share: exit status, messages, checks of options, answers. Free of any method of compression."""
