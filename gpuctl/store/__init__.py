"""Where checkpoints and outputs live: a folder or an S3 bucket."""
