"""Working on indexes from outside: building them from files, describing and verifying them."""
