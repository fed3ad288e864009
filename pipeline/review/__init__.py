"""People judge labels: what to look at first, the server of the page, where decisions rest, what becomes of them."""
