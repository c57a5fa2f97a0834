"""Lists of videos and labels: folders, CSV files and the official datasets."""
