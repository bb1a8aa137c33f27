"""Long runs with hostile input: `make fuzz`. Each module is a program that ends with a report and,
when the server did what it must not, with status 1."""
