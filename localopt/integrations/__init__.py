"""What a training framework needs beyond the one line: one file a framework, read alone."""
