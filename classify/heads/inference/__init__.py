"""Use of saved heads: labels for images, and scores on labelled rows."""
