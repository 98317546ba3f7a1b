"""The edge: admission, versions, sessions, retrieval, bundles."""
