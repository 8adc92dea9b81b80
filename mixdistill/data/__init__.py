"""What goes in: problems, traces of teachers, their mixes, and how a student reads them."""
