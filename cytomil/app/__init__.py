"""The application: settings, params.yaml and the command line. Nothing below it knows any of them."""
