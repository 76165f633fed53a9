"""What people look at: HTML pages, pictures and plots."""
