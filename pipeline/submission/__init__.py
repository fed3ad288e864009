"""Work sent to a cluster: what travels, whose places it may write, what comes back."""
