"""Where things are on the earth: distances, UTM, Web Mercator, regions, and positions in Parquet. Knows nothing of the other rooms."""
