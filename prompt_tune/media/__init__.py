"""Pictures, videos and streams as input; pictures, videos and labels as output."""
