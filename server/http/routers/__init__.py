"""The routes, a file for each kind of thing; `server.http.app` puts them together."""
