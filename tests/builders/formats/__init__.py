"""Small slides of every vendor's format, with pixels, scale and place known before they are written."""
