from perturblab.cli import main

if __name__ == "__main__":  # a server of processes imports the main module under another name
    main()
