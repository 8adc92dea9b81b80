"""How the pocket bases were made. Run by hand; imported by nobody."""
