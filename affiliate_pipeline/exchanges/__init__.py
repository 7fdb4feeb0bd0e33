"""The exchanges: what their endpoints are, and how each is signed, requested and paged."""
