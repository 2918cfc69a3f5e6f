"""One file a framework, for what a framework needs beyond a torch optimizer. Nothing here is imported by the core."""
