"""Models behind HTTP: requests, limits, the page, and Ray Serve around them."""
