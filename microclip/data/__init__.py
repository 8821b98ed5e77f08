"""Images: sources, the decoded store, and views drawn from it."""
