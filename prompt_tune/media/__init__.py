"""Images, videos and streams in; pictures, videos and labels out."""
