"""The tests. They are a package, so that the ranks can import the functions to run."""
