"""The export of kickbacks: a POST requests it, hours later a GET returns its file's URL."""
