"""People judge labels: what to look at first, the page and its server, where decisions rest, and what becomes of them."""
