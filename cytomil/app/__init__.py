"""The application: settings, params.yaml and the command line. Nothing below this package uses them."""
